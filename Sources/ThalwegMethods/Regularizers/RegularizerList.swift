import ThalwegCore

let regularizerList: [any Listed.Type] = [
  L1.self,
  L2.self,
  ElasticNet.self,
  GroupLasso.self,
  NormLoss.self,
  NuclearNorm.self,
  RNNVanishing.self,
]
