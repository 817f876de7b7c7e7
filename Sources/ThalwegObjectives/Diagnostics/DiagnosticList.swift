import ThalwegCore

let diagnosticList: [any Listed.Type] = [
  EffectiveRank.self
]
