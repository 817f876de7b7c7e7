let matrixList: [Registered] = [
  entry(Muon.self),
  entry(Orthogonalize.self),
  entry(NorMuon.self),
  entry(AdaMuon.self),
  entry(Dion2.self),
  entry(PolarGrad.self),
  entry(Scion.self),
  entry(APOLLO.self),
  entry(NormDirection.self),
  normDescent,
  entry(DualSum.self),
  entry(GradientEMA.self),
]
