import Glibc

/// bᵗ for a whole exponent.
package func power(_ b: Double, _ t: Int) -> Double { pow(b, Double(t)) }
