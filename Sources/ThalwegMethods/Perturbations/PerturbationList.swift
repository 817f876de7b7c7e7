import ThalwegCore

let perturbationList: [any Listed.Type] = [
  SAM.self,
  GradientRegularization.self,
  ASAM.self,
  SAMON.self,
  USAM.self,
  DNSAM.self,
  TRAM.self,
  GSAM.self,
  GNP.self,
  FriendlySAM.self,
  LookSAM.self,
  AvgSAM.self,
  ESAM.self,
  FSAM.self,
  ImbSAM.self,
  AMP.self,
  IGNITE.self,
  EMANesterov.self,
  GLAD.self,
  GAQATFreeze.self,
]
