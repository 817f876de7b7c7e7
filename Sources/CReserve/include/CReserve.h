/* The reserve declares nothing: the linker calls it (reserve.c, Package.swift). */
