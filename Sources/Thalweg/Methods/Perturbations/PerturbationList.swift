let perturbationList: [Registered] = [
  entry(SAM.self),
  entry(GradientRegularization.self),
]
