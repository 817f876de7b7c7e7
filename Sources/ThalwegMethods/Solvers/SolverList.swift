import ThalwegCore

let solverList: [any Listed.Type] = [
  CG.self
]
