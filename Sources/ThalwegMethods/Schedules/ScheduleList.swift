import ThalwegCore

let scheduleList: [any Listed.Type] = [
  Constant.self,
  Linear.self,
  Polynomial.self,
  Cosine.self,
  CosineRestarts.self,
  Exponential.self,
  StepDecay.self,
  InverseSqrt.self,
  InverseTime.self,
  WarmupStableDecay.self,
  OneCycle.self,
  RefinedSchedule.self,
  Warmup.self,
  MupScaling.self,
  WarmupLinear.self,
  WarmupCosine.self,
  Join.self,
  ReduceOnPlateau.self,
  NormTest.self,
  InnerProductTest.self,
  BatchLRScaling.self,
  EffectiveLR.self,
  DANNLambda.self,
  DANNLR.self,
  DANNSchedules.self,
  RhoSchedule.self,
  RDPAccountant.self,
  DPNoise.self,
  PowerCooldown.self,
  REX.self,
  MomentumWarmup.self,
  BatchLadder.self,
  CubicSparsity.self,
  QuadraticRamp.self,
  ExpAnneal.self,
  ArchEntropy.self,
  Greedy.self,
  TimestepCurriculum.self,
  LocalSGD.self,
  NoPropSchedule.self,
  SSOStepsize.self,
  KLAnneal.self,
  NFTOldDecay.self,
  InversionLR.self,
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
