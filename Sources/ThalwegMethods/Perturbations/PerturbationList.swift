import ThalwegCore

let perturbationList: [any Listed.Type] = [
  SAM.self,
  GradientRegularization.self,
]
