let objectiveList: [Registered] = [
  entry(CheckeredRegression.self),
  entry(SumLogConcave.self),
  entry(UncertaintyWeighting.self),
  entry(IMTLL.self),
  entry(STCH.self),
  entry(VREx.self),
  entry(GroupDRO.self),
  entry(DWA.self),
]
