import ThalwegCore

// Element-wise optimizers, one line a method.

let elementList: [any Listed.Type] = [
  AdaMax.self,
  RMSProp.self,
  AdaGrad.self,
  AdaDelta.self,
  NAdam.self,
  RAdam.self,
  Signum.self,
  Tiger.self,
  Lion.self,
  Grams.self,
  DiffGrad.self,
  AdEMAMix.self,
  AdaBelief.self,
  Yogi.self,
  ADOPT.self,
  LaProp.self,
  Adan.self,
  OptimisticSGD.self,
  SGLD.self,
  Cautious.self,
  CautiousAdamW.self,
]
