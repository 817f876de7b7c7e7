let regularizerList: [Registered] = [
  entry(L1.self),
  entry(L2.self),
  entry(ElasticNet.self),
  entry(GroupLasso.self),
  entry(NormLoss.self),
  entry(NuclearNorm.self),
  entry(RNNVanishing.self),
]
