import ThalwegCore

let matrixList: [any Listed.Type] = [
  Muon.self,
  Orthogonalize.self,
]
