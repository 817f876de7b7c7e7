import ThalwegCore

let averageList: [any Listed.Type] = [
  EMA.self,
  SWA.self,
  PolynomialDecayAverage.self,
  TrajectoryMoments.self,
  Lookahead.self,
  ScheduleFree.self,
  ScheduleFreeSGD.self,
  ScheduleFreeAdamW.self,
]
