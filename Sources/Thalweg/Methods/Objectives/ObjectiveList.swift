let objectiveList: [Registered] = [
  entry(CheckeredRegression.self),
  entry(SumLogConcave.self),
  entry(ODEErrorReg.self),
  entry(ODEStiffnessReg.self),
  entry(PathNorm.self),
]
