// The registry's lists, one line a method: a new method adds its line here and its own file under its kind.

let optimizerList: [Registered] = [
  entry(SGD.self),
  entry(Adam.self),
  entry(AdamW.self),
  entry(AMSGrad.self),
]

let diagnosticList: [Registered] = []
