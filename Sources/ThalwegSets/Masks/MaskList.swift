import ThalwegCore

let maskList: [any Listed.Type] = [
  NMSparsity.self,
  SRSTE.self,
  MagnitudePruning.self,
  StructuredPruning.self,
]
