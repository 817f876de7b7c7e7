import ThalwegCore

let objectiveList: [any Listed.Type] = [
  CheckeredRegression.self,
  SumLogConcave.self,
]
