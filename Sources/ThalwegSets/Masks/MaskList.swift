import ThalwegCore

let maskList: [any Listed.Type] = [
  NMSparsity.self
]
