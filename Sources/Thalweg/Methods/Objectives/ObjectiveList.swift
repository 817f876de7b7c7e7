let objectiveList: [Registered] = [
  entry(CheckeredRegression.self),
  entry(SumLogConcave.self),
]
