import ThalwegCore

/// The methods of this module: what runs on its own and may ask.
package var solverMethods: [Registered] { entries(solverList) }
