import ThalwegCore

let transformList: [any Listed.Type] = [
  ClipValue.self,
  ClipGlobalNorm.self,
  CoordinateClip.self,
  GradientNoise.self,
  GradientAccumulate.self,
  TrAct.self,
  GhostStep.self,
  CurlDescent.self,
  PowerpropPrecond.self,
]
