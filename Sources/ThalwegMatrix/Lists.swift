import ThalwegCore

/// The methods of this module: rules of whole matrices.
package var matrixMethods: [Registered] { entries(matrixList) }
