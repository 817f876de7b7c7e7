import ThalwegCore

/// The methods of this module: regularizers, constraints, masks.
package var setMethods: [Registered] { [regularizerList, constraintList, maskList].flatMap(entries) }
