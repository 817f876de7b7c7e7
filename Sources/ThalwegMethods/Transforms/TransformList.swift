import ThalwegCore

let transformList: [any Listed.Type] = [
  DPSGD.self,
  DPAdaptiveClip.self,
  ClipValue.self,
  ClipGlobalNorm.self,
  CoordinateClip.self,
  GradientNoise.self,
  GradientAccumulate.self,
  TrAct.self,
  GhostStep.self,
  CurlDescent.self,
  PowerpropPrecond.self,
  ClipNorm.self,
  ClipBlockRMS.self,
  AGC.self,
  GradientCentralization.self,
  GradReversal.self,
  OnlineMedianGradient.self,
]
