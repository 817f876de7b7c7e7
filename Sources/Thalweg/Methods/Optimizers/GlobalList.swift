// Optimizers with sums over tensors, numbers of their own, whole tensors, or requests: one line a method.

let globalList: [Registered] = [
  entry(LAMB.self),
  entry(LARS.self),
  entry(BetaNGD.self),
  entry(AdaGradNorm.self),
  entry(PolyakSGD.self),
  entry(DoG.self),
  entry(DoWG.self),
  entry(ADoG.self),
  entry(Prodigy.self),
  entry(DAdaptSGD.self),
  entry(DAdaptAdam.self),
  entry(MARS.self),
]
