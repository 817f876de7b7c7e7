let scheduleList: [Registered] = [
  entry(Constant.self),
  entry(Linear.self),
  entry(Polynomial.self),
  entry(Cosine.self),
  entry(CosineRestarts.self),
  entry(Exponential.self),
  entry(StepDecay.self),
  entry(InverseSqrt.self),
  entry(InverseTime.self),
  entry(WarmupStableDecay.self),
  entry(OneCycle.self),
  entry(RefinedSchedule.self),
  entry(Warmup.self),
  entry(WarmupLinear.self),
  entry(WarmupCosine.self),
  entry(Join.self),
  entry(ReduceOnPlateau.self),
  entry(NormTest.self),
  entry(InnerProductTest.self),
  entry(BatchLRScaling.self),
  entry(EffectiveLR.self),
  entry(PowerCooldown.self),
  entry(REX.self),
  entry(MomentumWarmup.self),
  entry(BatchLadder.self),
  entry(Greedy.self),
]

extension Parameter {
  /// A number of steps.
  static func steps(_ name: String, _ meaning: String, _ standard: Int? = nil, from low: Double = 0) -> Parameter {
    .integer(name, standard, .atLeast(low), meaning, live: false)
  }
  static let end = Parameter.number("end", 0, .any, "final value")
}

/// k/total clipped to [0, 1]; what has no length is over.
func fraction(_ k: Double, _ total: Double) -> Double { total <= 0 ? 1 : min(max(k / total, 0), 1) }
