import ThalwegCore

let setOptimizerList: [any Listed.Type] = [
  RiemannianSGD.self,
  RiemannianAdam.self,
  RiemannianAdagrad.self,
  ProxSGD.self,
  ProxAdam.self,
]
