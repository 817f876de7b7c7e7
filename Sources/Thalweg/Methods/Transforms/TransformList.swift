let transformList: [Registered] = [
  entry(ClipValue.self),
  entry(ClipGlobalNorm.self),
  Registered(
    method: CoordinateClip.method,
    component: .chosen {
      $0.given("fraction") ? .whole(kernels(FractionClip.self)) : .element(kernels(CoordinateClip.self))
    }),
  ClipNorm.registered,
  entry(ClipBlockRMS.self),
  entry(AGC.self),
  entry(GradientCentralization.self),
  entry(GradReversal.self),
  entry(OnlineMedianGradient.self),
  entry(Flooding.self),
  entry(GradientNoise.self),
  entry(GradientAccumulate.self),
  entry(TrAct.self),
  GhostStep.registered,
  entry(CurlDescent.self),
  entry(PowerpropPrecond.self),
]
