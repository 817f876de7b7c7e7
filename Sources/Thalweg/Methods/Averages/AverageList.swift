let averageList: [Registered] = [
  entry(EMA.self),
  entry(SWA.self),
  entry(PolynomialDecayAverage.self),
  entry(TrajectoryMoments.self),
  entry(Lookahead.self),
  entry(ScheduleFree.self),
  entry(ScheduleFreeSGD.self),
  entry(ScheduleFreeAdamW.self),
]
