import ThalwegCore

// The registry's lists, one line a method: a new method adds its line here and its own file under its kind.

let optimizerList: [any Listed.Type] = [
  SGD.self,
  Adam.self,
  AdamW.self,
  AMSGrad.self,
]

let diagnosticList: [any Listed.Type] = []

/// The registry: every method of every family. The lists live in <Kind>/…List.swift, one line a method.
@_silgen_name("twi_registered_methods")
package func registeredMethods() -> [Registered] {
  let lists = [
    optimizerList, elementList, globalList, matrixList, transformList, perturbationList, aggregatorList, scheduleList,
    averageList,
    regularizerList, constraintList, objectiveList, maskList, diagnosticList, solverList,
  ]
  return lists.flatMap(entries) + pipelineList
}
