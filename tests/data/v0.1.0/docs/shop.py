def cancel_order(order_id):
    """Cancel an order that was not sent."""
    return order_id
