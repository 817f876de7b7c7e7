import ThalwegCore

/// The methods of this module: what is called on its own.
package var objectiveMethods: [Registered] {
  [objectiveList, weightingList, diagnosticList, objectiveSolverList].flatMap(entries)
}

/// Solvers of objectives of this module.
private let objectiveSolverList: [any Listed.Type] = [MPAD.self, GIOSelect.self]
