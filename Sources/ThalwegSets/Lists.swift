import ThalwegCore

/// The methods of this module: regularizers, constraints, masks, and the optimizers that hold one.
package var setMethods: [Registered] { [regularizerList, constraintList, maskList, setOptimizerList].flatMap(entries) }
