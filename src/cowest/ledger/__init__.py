"""Every paid call: entered, remembered, summed up, and held within a budget."""
