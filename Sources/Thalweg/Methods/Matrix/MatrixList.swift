let matrixList: [Registered] = [
  entry(Muon.self),
  entry(Orthogonalize.self),
]
