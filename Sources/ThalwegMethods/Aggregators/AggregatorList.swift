import ThalwegCore

let aggregatorList: [any Listed.Type] = [
  PCGrad.self,
  UPGrad.self,
]
