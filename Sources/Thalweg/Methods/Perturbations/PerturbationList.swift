let perturbationList: [Registered] = [
  entry(SAM.self),
  entry(GradientRegularization.self),
  entry(EMANesterov.self),
]
