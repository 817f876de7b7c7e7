// The registry's lists, one line a method: a new method adds its line here and its own file under its kind.

let optimizerList: [Registered] = [
  entry(SGD.self),
  entry(Adam.self),
  entry(AdamW.self),
  entry(AMSGrad.self),
]

let matrixList: [Registered] = []
let aggregatorList: [Registered] = []
let regularizerList: [Registered] = []
let constraintList: [Registered] = []
let maskList: [Registered] = []
let diagnosticList: [Registered] = []
