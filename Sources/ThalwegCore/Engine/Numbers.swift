import Glibc

/// bᵗ for a whole exponent.
public func power(_ b: Double, _ t: Int) -> Double { pow(b, Double(t)) }

/// The larger and the smaller of two numbers; a NaN stays, where Swift's own would drop one.
public func larger(_ a: Double, _ b: Double) -> Double { a.isNaN || b.isNaN ? .nan : max(a, b) }
public func smaller(_ a: Double, _ b: Double) -> Double { a.isNaN || b.isNaN ? .nan : min(a, b) }
