import ThalwegCore

let diagnosticList: [any Listed.Type] = [
  EffectiveRank.self,
  OperatorNorms.self,
  DirectionalSharpness.self,
  GameDrift.self,
  QKClip.self,
]
