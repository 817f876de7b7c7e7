import ThalwegCore

let matrixList: [any Listed.Type] = [
  Muon.self,
  Orthogonalize.self,
  Shampoo.self,
  SOAP.self,
  KLShampoo.self,
  KLSOAP.self,
]
