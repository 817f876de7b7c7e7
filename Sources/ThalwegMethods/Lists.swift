import ThalwegCore

// The registry's lists, one line a method: a new method adds its line here and its own file under its kind.

let optimizerList: [any Listed.Type] = [
  SGD.self,
  Adam.self,
  AdamW.self,
  AMSGrad.self,
]

/// The methods of this module.
package var optimizerMethods: [Registered] {
  [
    optimizerList, elementList, globalList, transformList, perturbationList, aggregatorList, scheduleList, averageList,
  ].flatMap(entries) + pipelineList
}
