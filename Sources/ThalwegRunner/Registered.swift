import ThalwegCore
import ThalwegMatrix
import ThalwegMethods
import ThalwegObjectives
import ThalwegSets
import ThalwegSolvers

/// The registry: every method of every family. Their lists live beside them, one line a method.
@_silgen_name("twi_registered_methods")
package func registeredMethods() -> [Registered] {
  optimizerMethods + matrixMethods + setMethods + objectiveMethods + solverMethods
}
