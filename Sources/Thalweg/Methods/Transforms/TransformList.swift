let transformList: [Registered] = [
  entry(ClipValue.self),
  entry(ClipGlobalNorm.self),
  Registered(
    method: CoordinateClip.method,
    component: .chosen {
      $0.given("fraction") ? .whole(kernels(FractionClip.self)) : .element(kernels(CoordinateClip.self))
    }),
  entry(GradientNoise.self),
  entry(GradientAccumulate.self),
  entry(TrAct.self),
  GhostStep.registered,
  entry(CurlDescent.self),
  entry(PowerpropPrecond.self),
  Grokfast.registered,
  entry(ClipUpdateRMS.self),
  entry(UpdateFloor.self),
  entry(RelativeUpdate.self),
  entry(RadialBrake.self),
  entry(CautiousDecay.self),
  entry(CorrectedDecay.self),
  entry(Hyperball.self),
  entry(SpectralClip.self),
  entry(SpectralHardcap.self),
]
