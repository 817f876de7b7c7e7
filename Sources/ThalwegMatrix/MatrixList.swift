import ThalwegCore

let matrixList: [any Listed.Type] = [
  Muon.self,
  Orthogonalize.self,
  NorMuon.self,
  AdaMuon.self,
  Dion2.self,
  PolarGrad.self,
  Scion.self,
  APOLLO.self,
  NormDirection.self,
  NormDescent.self,
  DualSum.self,
  GradientEMA.self,
  AdaLOMO.self,
  CAME.self,
  SpectralClip.self,
  SpectralHardcap.self,
]
