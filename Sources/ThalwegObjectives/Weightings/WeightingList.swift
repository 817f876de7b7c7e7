import ThalwegCore

let weightingList: [any Listed.Type] = [
  DWA.self,
  GroupAdvantage.self,
  EffectiveNumberWeights.self,
  DRWWeights.self,
  GradNorm.self,
  FAMO.self,
  MixtureResponsibilities.self,
  HybridPostTraining.self,
  InfoBatch.self,
  SeTa.self,
  KeepByScore.self,
  USEFULUpsample.self,
  CoresetAugmentation.self,
  ManifoldLipschitzDual.self,
]
