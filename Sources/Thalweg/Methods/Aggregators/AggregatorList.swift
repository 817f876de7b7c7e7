let aggregatorList: [Registered] = [
  entry(PCGrad.self),
  entry(UPGrad.self),
]
