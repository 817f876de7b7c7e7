let maskList: [Registered] = [
  Registered(method: NMSparsity.method, component: .constraint(NMSparsity.kernels))
]
