import ThalwegCore

let diagnosticList: [any Listed.Type] = [
  EffectiveRank.self,
  PruningScore.self,
  ERKDensity.self,
  MovementPruning.self,
  RigL.self,
  LocalODEReg.self,
  ProxPoint.self,
]
