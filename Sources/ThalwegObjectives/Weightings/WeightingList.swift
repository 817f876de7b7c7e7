import ThalwegCore

let weightingList: [any Listed.Type] = [
  DWA.self,
  CVaRWeights.self,
  SpectralRisk.self,
  KLDROWeights.self,
  DRRhoWeights.self,
  FeasibleLearning.self,
  FocalWeight.self,
  DisparateImpact.self,
  PenaltyMethod.self,
]
