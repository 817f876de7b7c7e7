import ThalwegCore

let weightingList: [any Listed.Type] = [
  DWA.self,
  ManifoldLipschitzDual.self,
]
