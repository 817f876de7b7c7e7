import ThalwegCore

/// The methods of this module: what is called on its own.
package var objectiveMethods: [Registered] { [objectiveList, weightingList, diagnosticList].flatMap(entries) }
