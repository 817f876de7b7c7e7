import ThalwegCore

let matrixList: [any Listed.Type] = [
  Muon.self,
  Orthogonalize.self,
  Shampoo.self,
  SOAP.self,
  KLShampoo.self,
  KLSOAP.self,
  GaLore.self,
  OnlineSubspaceDescent.self,
  COAP.self,
  DCTAdamW.self,
  Trion.self,
  Dion.self,
  PSGDKron.self,
  PSGDLRA.self,
  PSGDXMat.self,
  PSGDDense.self,
  MFAC.self,
  NormTrustRegion.self,
  ScaledGD.self,
]
